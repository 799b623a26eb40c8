"""Why an image could not be had: reasons in words, and which of them may pass."""

from __future__ import annotations

import re
import socket
import ssl
from dataclasses import dataclass

import aiohttp

from curator_dask.fetching.addresses import REFUSED, RefusedAddressError
from curator_dask.fetching.lookups import NO_SUCH_HOST

#: What becomes of a row, in the words of img2dataset.
SUCCESS, NOT_DOWNLOADED = "success", "failed_to_download"
#: What came is no image, or none that is asked for.
NOT_AN_IMAGE = "failed_to_check"

_STATUS = {
    401: "unauthorized",
    402: "payment required",
    403: "forbidden",
    404: "not found",
    407: "proxy refused",
    408: "timed out",
    410: "gone",
    451: "unavailable for legal reasons",
}
# Kinds of reasons that may have passed when one asks again.
_PASSING = frozenset(
    {
        "timed out",
        "DNS did not answer",
        "DNS failed",
        "no connection",
        "cut short",
        "server error",
        "too many requests",
        "host given up",
    }
)
_CREDENTIALS = re.compile(r"(?<=//)[^/@\s]*@")


@dataclass(frozen=True)
class Failure:
    """Why a URL gave no image.

    Attributes
    ----------
    reason
        In words; a kind, a colon, and more of it.
    status
        Of the row.
    answered
        Whether a server has answered: else it is the network, or a host that is gone.
    wait
        Seconds after which the server is to be asked again, as it says; None: it does not.
    """

    reason: str
    status: str = NOT_DOWNLOADED
    answered: bool = False
    wait: float | None = None

    @property
    def may_pass(self) -> bool:
        """Whether it may be another time."""
        return may_pass(self.reason)


class FailedError(Exception):
    """Ends what is done for a URL, for this reason."""

    def __init__(self, reason: str, status: str = NOT_DOWNLOADED, wait: float | None = None) -> None:
        reason = without_credentials(reason)
        super().__init__(reason)
        #: It is that of a server that has answered.
        self.failure = Failure(reason, status, answered=True, wait=wait)


def kind_of(reason: str) -> str:
    """The kind of a reason, by which reasons are counted: what stands before the first colon, or parenthesis."""
    return reason.partition(":")[0].partition(" (")[0]


def may_pass(reason: str) -> bool:
    """Whether what failed for this reason may be had another time."""
    return kind_of(reason) in _PASSING


def without_credentials(text: str) -> str:
    """Text in which URLs have no user and no password."""
    return _CREDENTIALS.sub("", text)


def of_status(status: int, wait: float | None = None) -> FailedError:
    """What an answer of HTTP means that has no image.

    Parameters
    ----------
    status
        Of the answer.
    wait
        What its ``Retry-After`` says, in seconds.
    """
    if status == 429:
        return FailedError("too many requests (429)", wait=wait)
    if status >= 500:
        return FailedError(f"server error ({status})", wait=wait)
    return FailedError(f"{_STATUS.get(status, 'HTTP status')} ({status})")


def of_timeout(seconds: float, looking_up: bool) -> Failure:
    """What it means that time ran out."""
    if looking_up:
        return Failure(f"DNS did not answer: within {seconds:g} s")
    return Failure(f"timed out: it was not there within {seconds:g} s")


def of_error(error: Exception, host: str) -> Failure:
    """What an error of the network, or of aiohttp, means.

    Parameters
    ----------
    error
        What was raised.
    host
        That was asked.
    """
    if isinstance(error, FailedError):
        return error.failure
    cause = getattr(error, "os_error", None) or error
    if isinstance(cause, socket.gaierror):
        if cause.errno in NO_SUCH_HOST:
            return Failure(f"no such host: {host}")
        return Failure(f"DNS failed: {host}: {cause.strerror or cause}")
    if isinstance(cause, RefusedAddressError) or REFUSED in str(error):
        said = cause.strerror if isinstance(cause, RefusedAddressError) else f"{REFUSED}: {host}"
        return Failure(str(said), answered=True)  # it is the list, not the network
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Failure(f"TLS: {_verified(error.certificate_error)}")
    if isinstance(error, ssl.SSLError | aiohttp.ClientSSLError) or isinstance(cause, ssl.SSLError):
        return Failure(f"TLS: {_verified(cause)}")
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError | ConnectionResetError):
        return Failure("cut short: the server has closed the connection")
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return Failure(f"no connection: {_words(cause)}")
    if isinstance(error, aiohttp.InvalidURL):
        return Failure(f"no URL: {_words(error)}", answered=True)
    return Failure(f"bad answer: {_words(error)}", answered=True)


def _verified(error: BaseException) -> str:
    return str(getattr(error, "verify_message", "") or getattr(error, "reason", "") or _words(error))


def _words(error: BaseException) -> str:
    said = error.strerror if isinstance(error, OSError) else None
    if isinstance(error, aiohttp.ClientResponseError):
        said = error.message  # without the URL, which the row has
    said = said or str(error) or type(error).__name__
    return without_credentials(" ".join(said.split()))[:200]
