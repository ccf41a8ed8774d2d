"""What tests share: samples, a signer, processes of the relay and of Redis, and what harms them."""
