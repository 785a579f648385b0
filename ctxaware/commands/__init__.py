"""The sub-commands, one module a family. Modules here import heavy things inside functions only."""
