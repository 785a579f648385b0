"""The indicator token `[IND]` (protocol section 3)."""
