"""A connection that asks the server nothing twice, so that one answer serves several tests."""

import httpx2


class Replay(httpx2.BaseTransport):
    """Sends a request to the server, unless one with the same body was answered before.

    What client libraries make of an answer is then tested in several ways for the price of one.
    Threads may share it, if they don't send the same request at once.
    """

    def __init__(self):
        self._server = httpx2.HTTPTransport(verify=False)
        self._answers = {}

    def handle_request(self, request):
        question = (request.url, request.read())
        if question not in self._answers:
            response = self._server.handle_request(request)
            content = response.read()
            self._answers[question] = (response.status_code, response.headers, content)
        status, headers, content = self._answers[question]
        return httpx2.Response(status, headers=headers, content=content)

    def close(self):
        self._server.close()
