"""The sub-commands, one module each. Modules here import heavy things inside functions only."""
