"""The Telegram bot, a client like any other."""
