"""Instruction data: releases, cleaning, conversations in files (`ctxaware prepare`)."""
