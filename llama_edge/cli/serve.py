"""`serve`: a bundle for other programs, over HTTP, or as JSON lines with `--stdio`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from llama_edge.cli.console import PublicKeyOption, RuntimeOption, print_error, say, trust_in
from llama_edge.cli.guard import CategoriesOption, ThresholdOption, guard_of
from llama_edge.core.errors import LlamaEdgeError, UsageError
from llama_edge.core.regular import real_path

_KEY_VARIABLE = "LLAMA_EDGE_API_KEY"


def serve(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes one that is free.")] = 8080,
    expose: Annotated[
        bool, typer.Option("--expose", help="Let --host be one that other machines reach.")
    ] = False,
    api_key: Annotated[
        str | None,
        typer.Option(envvar=_KEY_VARIABLE, help="Answer only requests that have this key."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name by which clients reach this machine; may be repeated."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="An origin whose web pages may ask (CORS); may be repeated."),
    ] = None,
    queue: Annotated[int, typer.Option(help="Requests that may wait for the one answered.")] = 64,
    model_name: Annotated[
        str | None, typer.Option(help="The model's name in requests; by default the folder's.")
    ] = None,
    guard: Annotated[
        Path | None,
        typer.Option(
            help="The folder of a Llama Guard's bundle: questions and answers that it finds unsafe "
            "are withheld. An answer comes when it is whole and checked."
        ),
    ] = None,
    categories: Annotated[str | None, CategoriesOption] = None,
    threshold: Annotated[float, ThresholdOption] = 0.5,
    stdio: Annotated[
        bool, typer.Option("--stdio", help="JSON lines on stdin and stdout instead of HTTP.")
    ] = False,
    runtime: Annotated[str | None, RuntimeOption] = None,
    public_key: Annotated[Path | None, PublicKeyOption] = None,
) -> None:
    """Answer OpenAI's chat completions over HTTP, on this machine only, until Ctrl-C.

    With --stdio: JSON lines on stdin are answered with token ids on stdout, until `close` or the
    end of input. docs/serve.md and docs/apps.md have both in full.
    """
    from llama_edge.generate.bundle_model import BundleModel

    if stdio:
        from llama_edge.serve.stdio import serve as answer_lines

        _refuse_http_options(context)
        model = BundleModel(bundle, runtime, trust_in(public_key))
        answer_lines(model, sys.stdin.buffer, sys.stdout)
        return

    from llama_edge.serve.access import AccessConfig
    from llama_edge.serve.answers import Answers
    from llama_edge.serve.server import ServerConfig, serve_http

    config = ServerConfig(
        host=host,
        port=port,
        expose=expose,
        access=AccessConfig(
            hosts=tuple(allow_host or ()), origins=tuple(allow_origin or ()), api_key=api_key
        ),
        max_waiting=queue,
        model_name=model_name or real_path(bundle).name,
    )
    trust = trust_in(public_key)
    model = BundleModel(bundle, runtime, trust)
    if model.failed_gate:
        say("warning: this bundle failed its gate; see its parity.json", err=True)
    if model.state_note is not None:
        say(f"note: {model.state_note}", err=True)
    if not config.is_local:
        who = "whoever has the key" if api_key else "everybody; give --api-key"
        say(f"warning: other machines reach {host}, unencrypted, and may ask: {who}", err=True)

    def ready(address: str) -> None:
        say(
            f"{config.model_name}: {address}/v1, a context of {model.max_context} tokens; Ctrl-C "
            "ends",
            err=True,
        )

    def told(error: LlamaEdgeError) -> None:
        print_error(error, as_json=False)

    checks = guard_of(guard, categories, threshold, trust)
    serve_http(lambda: Answers(model, checks), model, config, ready=ready, told=told)


def _refuse_http_options(context: typer.Context) -> None:
    """Options that --stdio would leave without effect."""
    http = ("host", "port", "expose", "api_key", "allow_host", "allow_origin", "queue")
    for name in (*http, "model_name", "guard", "categories", "threshold"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{name.replace('_', '-')} is for HTTP; leave it out with --stdio")
