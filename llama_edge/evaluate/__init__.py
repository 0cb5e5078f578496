"""`eval`: perplexity over windows of a text, and tasks, each with an interval."""
