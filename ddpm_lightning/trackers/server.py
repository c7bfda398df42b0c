"""Whether a tracking server answers, before W&B or MLflow try for minutes."""

from __future__ import annotations

import ssl
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

PATIENCE = 5.0
"""Seconds for which a server may stay silent."""


def why_silent(address: str) -> object | None:
    """Return why no server of HTTP answers at an address; None: one does, whatever it says."""
    try:
        urlopen(address, timeout=PATIENCE).close()
    except HTTPError:
        return None
    except (OSError, ValueError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        # The package itself may know the certificate.
        return None if isinstance(reason, ssl.SSLError) else reason
    return None
