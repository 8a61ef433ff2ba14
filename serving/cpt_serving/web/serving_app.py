"""FastAPI with the order of its layers turned round: ours stand around the framework's own."""

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send


class ServingApp(FastAPI):
    """An app whose added middleware is the outermost, so that what it answers itself costs nothing of the framework.

    As ever, the middleware that was added first is the innermost of them.
    """

    _around: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request or the app's lifespan."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        if self._around is None:
            app: ASGIApp = super().__call__
            for middleware, arguments, options in reversed(self.user_middleware):
                app = middleware(app, *arguments, **options)
            self._around = app
        await self._around(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        """Return the framework's layers around the routes, without the added ones."""
        added, self.user_middleware = self.user_middleware, []
        try:
            return super().build_middleware_stack()
        finally:
            self.user_middleware = added
