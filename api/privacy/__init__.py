"""What is done with personal data at people's request, and by the clock: export, erasure, retention; and telemetry, which holds none."""
