"""What `ropewalk` can do, one module per command or group of commands."""
