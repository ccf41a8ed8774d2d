"""What is published and served, for programs: JSON Schema, AsyncAPI and OpenAPI."""
