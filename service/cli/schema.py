"""The command `schema`."""

from typing import Final

import click

from service.schema import asyncapi, json_schema, openapi

DOCUMENTS: Final = {"json-schema": json_schema.document, "asyncapi": asyncapi.document, "openapi": openapi.document}


@click.command()
@click.argument("which", type=click.Choice([*DOCUMENTS]), default="json-schema")
def schema(which: str) -> None:
    """Print a schema of what is published and what is served.

    json-schema: the published message. asyncapi: channels and stream. openapi: the HTTP endpoints.
    """
    click.echo(json_schema.text(DOCUMENTS[which]()))
