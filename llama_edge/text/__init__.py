"""The text around a model: tokenizer, chat template, dialogs, tool calls, and generation."""
