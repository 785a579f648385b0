import pytest
import torch

from ctxaware.devices import choose_device
from ctxaware.errors import InputError


def test_a_device_that_is_there():
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["meta", "nonsense", "cuda:99", "cuda:-1", "hpu", "privateuseone", "fpga", "cpu:x"])
def test_a_device_that_is_not_there_is_one_line(name):
    with pytest.raises(InputError, match="device") as error:
        choose_device(name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200
