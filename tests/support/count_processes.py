"""`ctxaware` with a note of how many processes there were and how many shards this one wrote (for a test)."""

import json
import sys

if __name__ == "__main__":
    from ctxaware.commands.app import main
    from ctxaware.scores import shards

    note, sys.argv = sys.argv[1], ["ctxaware", *sys.argv[2:]]
    write_shards, written = shards.write_shards, []
    shards.write_shards = lambda *args: write_shards(*args, on_shard=written.append)
    from accelerate import PartialState

    state = PartialState(cpu=True)
    told = {"num_processes": state.num_processes}, f"{note}-{state.process_index}"
    try:
        main()
    finally:
        with open(told[1], "w") as file:
            json.dump(told[0] | {"shards": len(written)}, file)
