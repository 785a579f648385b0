"""`ctxaware attention`: where the last token of needle prompts looks, without and with the chat template."""
