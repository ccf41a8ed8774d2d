"""The command that prints the contract for machines."""

from typing import Final

import click

from service.schema import asyncapi as schema_asyncapi
from service.schema import json_schema
from service.schema import openapi as schema_openapi

DOCUMENTS: Final = {
    "json-schema": json_schema.document,
    "asyncapi": schema_asyncapi.document,
    "openapi": schema_openapi.document,
}


@click.command()
@click.argument("which", type=click.Choice([*DOCUMENTS]), default="json-schema")
def schema(which: str) -> None:
    """Print the contract for machines.

    json-schema: the message as published. asyncapi: channels and stream. openapi: what is asked over HTTP.
    """
    click.echo(json_schema.text(DOCUMENTS[which]()))
