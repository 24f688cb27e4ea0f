package main

import (
	"io"
	"net"
	"time"

	"github.com/gorilla/websocket"
)

// socket makes a byte stream of a WebSocket's binary messages.
type socket struct {
	*websocket.Conn
	message io.Reader
}

var _ net.Conn = (*socket)(nil)

func (s *socket) Read(bytes []byte) (int, error) {
	for {
		if s.message == nil {
			kind, message, err := s.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				continue
			}
			s.message = message
		}
		count, err := s.message.Read(bytes)
		if err == io.EOF {
			s.message = nil
			if count == 0 {
				continue
			}
			err = nil
		}
		return count, err
	}
}

func (s *socket) Write(bytes []byte) (int, error) {
	if err := s.WriteMessage(websocket.BinaryMessage, bytes); err != nil {
		return 0, err
	}
	return len(bytes), nil
}

func (s *socket) SetDeadline(at time.Time) error {
	if err := s.SetReadDeadline(at); err != nil {
		return err
	}
	return s.SetWriteDeadline(at)
}

// splice copies both ways until both ends have said their last word.
func splice(a, b net.Conn) {
	defer a.Close()
	defer b.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		copyHalf(a, b)
	}()
	copyHalf(b, a)
	<-done
}

func copyHalf(to, from net.Conn) {
	// An error ends this half like an end of data: the other end notices either way.
	_, _ = io.Copy(to, from)
	switch to := to.(type) {
	case interface{ CloseWrite() error }:
		_ = to.CloseWrite()
	default:
		// A yamux stream's Close closes its sending half.
		_ = to.Close()
	}
}
