"""`python -m ctxaware`, and so `accelerate launch -m ctxaware`."""

from ctxaware.cli import main

if __name__ == "__main__":
    main()
