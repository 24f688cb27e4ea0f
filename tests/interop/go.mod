module edgecloud.dev/tests/interop

go 1.20

require (
	github.com/gorilla/websocket v1.5.3
	github.com/hashicorp/yamux v0.1.2
)
