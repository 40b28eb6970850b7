"""Programs that use Holdbook over HTTP and import none of its server code."""
