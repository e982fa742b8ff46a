"""Text in and out: encoding prompts and chats, incremental detokenization, stop strings."""
