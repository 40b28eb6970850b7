"""What people may demand: consent and its end, everything that is known of them, and to be forgotten."""
