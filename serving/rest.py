"""Upscale pictures by a server, over REST, a request for each. Needs Python alone.

    python serving/rest.py http://localhost:8501 lapsrn-x4 photo.jpg portrait.png
    python serving/rest.py http://localhost:8501 srmap-x4 photo.jpg --temperature 0.5 --seed 1

writes photo_sr.png and portrait_sr.png, nothing over what is there, and says which of them could not be
upscaled.
"""

import argparse
import base64
import http.client
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path


def upscale(url: str, model: str, pictures: list[bytes], **values: float) -> list[tuple[bytes, str]]:
    """Upscale PNG and JPEG files, of any sizes, in one request.

    Args:
        url: Of the server, `"http://localhost:8501"`.
        model: Its name at the server.
        values: `temperature` and `seed`, of networks that draw; the same for every picture.

    Returns:
        A (PNG file, status) for each picture; where the status is not empty, the file is.

    Raises:
        RuntimeError: with the server's words, if it refuses the request as a whole.
        OSError: if it cannot be reached, or is silent for ten minutes.
    """
    instances = [{"image_bytes": {"b64": base64.b64encode(picture).decode()}, **values}
                 for picture in pictures]
    body = json.dumps({"signature_name": "image_bytes", "instances": instances}).encode()
    try:
        with urllib.request.urlopen(f"{url}/v1/models/{model}:predict", body, timeout=600) as response:
            rows = json.load(response)["predictions"]
        return [(base64.b64decode(row["image_bytes"]["b64"]), row["status"]) for row in rows]
    except urllib.error.HTTPError as error:
        raise RuntimeError(error.read().decode(errors="replace")) from None
    except (LookupError, TypeError):
        raise RuntimeError(f"{url} gives no answer of `image_bytes`") from None


def main(upscale: Callable[..., list[tuple[bytes, str]]], example: str) -> None:
    """The command line of a client, here or over gRPC."""
    parser = argparse.ArgumentParser(description="Upscale pictures by a server: photo.jpg to photo_sr.png.")
    parser.add_argument("server", help=example)
    parser.add_argument("model", help="its name at the server")
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--temperature", type=float, default=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    paths, server, model = (options.pop(name) for name in ("pictures", "server", "model"))
    failed = 0
    for path in paths:
        target = path.with_name(f"{path.stem}_sr.png")
        try:
            if target.exists():
                raise FileExistsError(f"{target} exists already")
            ((sr, status),) = upscale(server, model, [path.read_bytes()], **options)
            if not status:
                with open(target, "xb") as file:  # not over what has appeared meanwhile
                    try:
                        file.write(sr)
                    except OSError:
                        target.unlink()
                        raise
        except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
            status = " ".join(str(error).split()) or type(error).__name__
        if status:
            failed = 1
            print(f"{path}: {status}", file=sys.stderr)
    sys.exit(failed)


if __name__ == "__main__":
    main(upscale, "http://localhost:8501")
