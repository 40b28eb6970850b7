"""Messages to people's own HTTP servers, as Standard Webhooks 1.0 lays down (https://www.standardwebhooks.com)."""
