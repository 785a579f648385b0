"""`python -m ctxaware`, and so `accelerate launch -m ctxaware`."""

from ctxaware.commands.app import main

if __name__ == "__main__":
    main()
