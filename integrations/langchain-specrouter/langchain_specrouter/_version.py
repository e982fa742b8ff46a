"""The version, for traces (`metadata["lc_versions"]`)."""

__version__ = "0.1.0"
