"""The live page: what the topics of scores, dead letters and evidence say, in a browser.

    kafka.tail -> reader -> Store -> Feed -> web (Starlette) -> static/*.js

The store is plain data and holds everything that is bounded; the feed turns what changed in it into one
stream of server-sent events, coalesced, encoded once for all pages that ask at the same tick. A slow page has
no queue that could grow: it asks for what changed since the version that it has, whenever it comes round.
"""
