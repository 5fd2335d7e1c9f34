"""Messages, turns and tool calls: the one format, its token ids, and its rows in datasets."""
