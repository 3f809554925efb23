"""Scripts that measure or prove something; no part of the installed package."""
