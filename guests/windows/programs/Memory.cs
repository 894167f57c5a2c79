// SPDX-License-Identifier: GPL-2.0-or-later
// Memory of this process outside of the collected heap, and how much the guest has.
using System;
using System.IO;
using System.Runtime.InteropServices;

namespace Memshare
{
    unsafe class Memory : IDisposable
    {
        readonly IntPtr allocated;
        public readonly ulong* Words;
        public readonly long Pages;

        public Memory(long pages)
        {
            Pages = pages;
            allocated = Marshal.AllocHGlobal(new IntPtr((pages + 1) * Pattern.PageBytes));
            long start = (allocated.ToInt64() + Pattern.PageBytes - 1) / Pattern.PageBytes * Pattern.PageBytes;
            Words = (ulong*)start;
        }

        public ulong* Page(long number)
        {
            return Words + number * Pattern.PageWords;
        }

        public void Dispose()
        {
            Marshal.FreeHGlobal(allocated);
        }
    }

    struct Ram
    {
        public long TotalBytes, AvailableBytes;

        public static Ram Now()
        {
            return Background.IsWindows ? OfWindows() : OfLinux();
        }

        static Ram OfWindows()
        {
            MemoryStatus status = new MemoryStatus();
            status.length = (uint)Marshal.SizeOf(status);
            if (!GlobalMemoryStatusEx(ref status))
                throw new Failure("GlobalMemoryStatusEx: Windows error " + Marshal.GetLastWin32Error());
            return new Ram { TotalBytes = (long)status.total, AvailableBytes = (long)status.available };
        }

        // To try these programs elsewhere.
        static Ram OfLinux()
        {
            Ram ram = new Ram();
            foreach (string line in File.ReadAllLines("/proc/meminfo"))
            {
                string[] words = line.Split(new[] { ' ' }, StringSplitOptions.RemoveEmptyEntries);
                if (words[0] == "MemTotal:")
                    ram.TotalBytes = long.Parse(words[1]) << 10;
                if (words[0] == "MemAvailable:")
                    ram.AvailableBytes = long.Parse(words[1]) << 10;
            }
            return ram;
        }

        [StructLayout(LayoutKind.Sequential)]
        struct MemoryStatus
        {
            public uint length, load;
            public ulong total, available, totalPageFile, availablePageFile, totalVirtual, availableVirtual, extended;
        }

        [DllImport("kernel32.dll", SetLastError = true)]
        static extern bool GlobalMemoryStatusEx(ref MemoryStatus status);
    }
}
