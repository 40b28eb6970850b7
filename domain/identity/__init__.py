"""Who may ask for what: tenants, people, their devices and sessions, service accounts and their keys."""
