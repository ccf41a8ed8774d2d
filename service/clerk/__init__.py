"""What Clerk sends: signatures, events, and the state that an event becomes. Does no I/O; svix enters here."""
