"""Context-dependency scores of turns (`ctxaware score`, `select`, `layers`)."""
