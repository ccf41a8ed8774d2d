"""What Clerk sends: signatures, events, and the state that an event makes. Does no I/O; svix enters here."""
