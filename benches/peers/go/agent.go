package main

import (
	"net"
	"net/http"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/yamux"
)

// connect keeps one tunnel and splices its streams to the origin until the tunnel ends.
func connect(tunnel, origin, token string) error {
	header := http.Header{"Authorization": {"Bearer " + token}}
	conn, _, err := websocket.DefaultDialer.Dial("ws://"+tunnel+"/tunnel", header)
	if err != nil {
		return err
	}
	session, err := yamux.Server(&socket{Conn: conn}, sessionConfig())
	if err != nil {
		return err
	}
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			return err
		}
		go func() {
			upstream, err := net.Dial("tcp", origin)
			if err != nil {
				stream.Close()
				return
			}
			splice(stream, upstream)
		}()
	}
}
