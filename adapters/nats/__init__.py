"""The bus: publishing the log to NATS JetStream, and listening to it from there."""
