package main

import (
	"encoding/binary"
	"sync"
)

// Kinds and flags of yamux frames (hashicorp yamux spec, "Framing").
const (
	typeData = 0
	typePing = 2
	flagSYN  = 1
)

// Stats is what the device knows of its tunnels.
type Stats struct {
	mutex sync.Mutex
	// Tunnels that were opened so far.
	Tunnels int `json:"tunnels"`
	// Ends of tunnels, as the device saw them.
	Ends []string `json:"ends"`
	// CloseCodes of close frames that have come.
	CloseCodes []int `json:"close_codes"`
	// Pings that yamux has sent by itself in the present tunnel. The next one is sent only when the one before was
	// answered; without an answer the session ends.
	Pings int `json:"pings"`
	// LargestFrame is the longest data that yamux has put into a frame so far.
	LargestFrame int `json:"largest_frame"`
	// Held requests are waiting for their release.
	Held int `json:"held"`
	// Sent is the SHA-256 of the last download.
	Sent string `json:"sent"`
}

var stats = &Stats{Ends: []string{}, CloseCodes: []int{}}

func (s *Stats) change(change func()) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	change()
}

func (s *Stats) begin() {
	s.change(func() {
		s.Tunnels++
		s.Pings = 0
	})
}

func (s *Stats) end(err error) {
	s.change(func() {
		s.Ends = append(s.Ends, err.Error())
	})
}

// closed takes note of a close frame. What yamux says at the end may be that a write failed after it.
func (s *Stats) closed(code int) {
	s.change(func() { s.CloseCodes = append(s.CloseCodes, code) })
}

// frame takes note of a frame's header and says how long its body is.
func (s *Stats) frame(header []byte) (body int) {
	kind, flags := header[1], binary.BigEndian.Uint16(header[2:])
	length := int(binary.BigEndian.Uint32(header[8:]))
	s.change(func() {
		switch {
		case kind == typeData:
			body = length
			if length > s.LargestFrame {
				s.LargestFrame = length
			}
		case kind == typePing && flags == flagSYN:
			s.Pings++
		}
	})
	return body
}
