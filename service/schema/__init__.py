"""What is published and answered, for machines: JSON Schema, AsyncAPI and OpenAPI."""
