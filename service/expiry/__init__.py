"""The worker that ends sessions that ran out, since Clerk sends nothing then."""
