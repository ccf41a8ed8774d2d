"""What runs beside the web process: ends sessions that ran out, and mends what webhooks did not tell."""
