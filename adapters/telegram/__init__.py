"""Telegram: what it signs, and how that is checked."""
