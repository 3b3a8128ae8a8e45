"""The polling API on AWS Lambda, behind a function URL or an API Gateway (REST or HTTP): `aws_lambda.handler`.

    pip install --target package '.[lambda]' && cp infra/functions/aws_lambda.py package/

Its environment needs RELAY_VALKEY_URL, and what tokens and topics need there. What is made here lasts for as long as the
instance does: the loop, and on it the connections to Valkey, one for each shard, since an instance has one request at a time.
Between two requests nothing runs, and the instance may be frozen.
"""

import asyncio

from mangum import Mangum

from fallback.app import create_app


def as_it_came(app):
    """Gives the relay paths as they came. Mangum decodes them before they are split, so that `%2F` would add a part.

    REST APIs and function URLs leave the path encoded. HTTP APIs decode it, which nobody can undo; topics need no encoding.

    To a REST API a page must be text: what is compressed it would hand on as base64, but where its binaryMediaTypes say
    otherwise. It compresses by itself, with `minimumCompressionSize`.
    """

    async def call(scope, receive, send):
        event = scope["aws.event"]
        scope["raw_path"] = (event.get("rawPath") or event["path"]).encode()
        if "version" not in event:  # only REST APIs don't tell one
            scope["headers"] = [header for header in scope["headers"] if header[0] != b"accept-encoding"]
        await app(scope, receive, send)

    return call


asyncio.set_event_loop(asyncio.new_event_loop())
# The lifespan would end with each request, and close the connections.
handler = Mangum(as_it_came(create_app()), lifespan="off")
