"""An S3 server for tests: moto's, as a process of its own."""

import subprocess
import sys
from typing import Any, Self
from uuid import uuid4

import boto3
import httpx

from vbatch_site.tests.servers import free_port, wait_until


class S3:
    """The server and a bucket in it."""

    def __init__(self) -> None:
        self.port = free_port()
        self.bucket = f"vbatch-{uuid4().hex[:8]}"
        self.settings = {
            "VBATCH_S3_BUCKET": f"{self.bucket}/some/where",
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def __enter__(self) -> Self:
        command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-p", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._is_up, 120)
        self.client().create_bucket(Bucket=self.bucket)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _is_up(self) -> bool:
        assert self._process.poll() is None
        try:
            return httpx.get(f"{self.settings['AWS_ENDPOINT_URL_S3']}/moto-api/", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def client(self) -> Any:
        """Return a client of its own."""
        return boto3.client(
            "s3",
            endpoint_url=self.settings["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
