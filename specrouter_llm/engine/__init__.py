"""Requests in, completions out: admission, the worker thread, streams and cancellation."""
