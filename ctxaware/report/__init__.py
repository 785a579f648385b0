"""Results that the harness wrote: reading them, comparing them, showing them."""
