"""What is read over HTTP, with READ_TOKEN: sessions and their history, events as they come, dead letters, figures."""
