"""Which answer belongs to which names request, for type checkers."""

from __future__ import annotations

from typing import Any, overload

from fdfsfuse.proto import names


class NamesCalls:
    """Gives ``call`` the type of the answer that `fdfsfuse.proto.names.ANSWERS` tells."""

    @overload
    async def call(self, request: names.ReadDir, deadline: float = ...) -> names.Listing: ...
    @overload
    async def call(self, request: names.Open, deadline: float = ...) -> names.Opened: ...
    @overload
    async def call(self, request: names.ListXattrs, deadline: float = ...) -> names.Xattrs: ...
    @overload
    async def call(self, request: names.StatFs, deadline: float = ...) -> names.Space: ...
    @overload
    async def call(
        self, request: names.ListObjects, deadline: float = ...
    ) -> names.ObjectListing: ...
    @overload
    async def call(self, request: names.Paths, deadline: float = ...) -> names.PathList: ...
    @overload
    async def call(self, request: names.NewObject, deadline: float = ...) -> names.ObjectMade: ...
    @overload
    async def call(
        self, request: names.Rename | names.Adopt, deadline: float = ...
    ) -> names.Renamed: ...
    @overload
    async def call(
        self,
        request: names.KeepAlive
        | names.Holds
        | names.SetXattr
        | names.RemoveXattr
        | names.CloseSession,
        deadline: float = ...,
    ) -> names.Done: ...
    @overload
    async def call(
        self,
        request: names.Lookup
        | names.GetAttr
        | names.LookupObject
        | names.Create
        | names.Remove
        | names.Link
        | names.SetAttr
        | names.StoreContent
        | names.NameObject
        | names.MakeWritable
        | names.CommitWrite
        | names.Truncate,
        deadline: float = ...,
    ) -> names.Attr: ...

    async def call(self, request: names.Request, deadline: float = ...) -> Any:
        """See `fdfsfuse.client.names.NamesSession.call`."""
        raise NotImplementedError
