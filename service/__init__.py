"""clerk-session-relay: Clerk's session webhooks, verified, and the state of every session in Redis."""
