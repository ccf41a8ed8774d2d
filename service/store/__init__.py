"""What is kept in Redis: one method for each Lua script, the scripts beside it, and dead letters."""
